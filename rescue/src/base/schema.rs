//! The name of the JSON schema, which reports and exchanged files carry.

/// Name and version of the schema.
pub const SCHEMA: &str = "rescue/v1";
