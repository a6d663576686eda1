//! The suite. (Being written.)
