//! What is made of a member: mended in place, rebuilt, salvaged.

pub mod guarantee;
pub mod level;
pub mod mend;
pub mod rebuild;
pub mod salvage;
