"""Results into what is drawn: figures, sentences, checks and their table twins. Pure."""
