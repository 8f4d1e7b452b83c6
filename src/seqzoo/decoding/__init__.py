"""One sampling loop and one beam search for all models: both read the prompt into the state, then
step, and know of a state only that its rows can be selected."""
