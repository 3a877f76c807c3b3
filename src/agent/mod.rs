//! agent
pub mod env;
pub mod status;
pub mod world;
