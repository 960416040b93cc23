"""One streamed pass over calibration data -> running sums, from which every score is made."""
