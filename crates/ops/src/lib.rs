//! Fused tensor operations with their own backward pass.
