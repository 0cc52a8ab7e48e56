"""Where does this come from: one graph of everything that a project has made."""
