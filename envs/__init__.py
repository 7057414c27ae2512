"""The Gymnasium environments of lepton_rl: fine-tuning as a game of knobs."""
