"""The core: sites, taps, interventions, runs. Knows no architecture, no method and no interface."""
