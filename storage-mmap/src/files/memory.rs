//! The file layer in memory. (Being written.)
