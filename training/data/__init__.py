"""What prismoji is trained and asked on: concepts, their pictures, questions, splits, tokens and batches."""
