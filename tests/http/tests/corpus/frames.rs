//! The same in HTTP/2, in frames written by hand.
