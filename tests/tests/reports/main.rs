//! Nodes after public reports: what somebody's node had is named, and mended where that is possible.

mod case;
mod manifests;
mod swap;
