//! Who may join and what a certificate says.
