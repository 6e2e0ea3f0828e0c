"""What becomes of spend: what an answer means, who settles it, and where it is kept until then."""
