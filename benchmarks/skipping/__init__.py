"""What skipping experts costs in answers: MoDES's search for thresholds beside a plain threshold."""
