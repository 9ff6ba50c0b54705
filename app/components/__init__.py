"""The figures on the screen: our own small components, so that every cell can be clicked."""
