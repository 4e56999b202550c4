//! Certificates and keys as bytes: reading, checking, making and signing them.

pub mod certificate;
pub mod der_parts;
pub mod issue;
pub mod key;
pub mod key_pool;
pub mod names;
pub mod pem;
