//! What every room may use: refusals, the trait that shows progress, words for people, YAML,
//! escaping, fault points for tests, and the calls into the kernel.

pub mod escaping;
pub mod fault;
pub mod hash;
pub mod refusal;
pub mod schema;
pub mod severity;
pub mod shell;
pub mod sys;
pub mod toml;
pub mod ui;
pub mod units;
pub mod writeback;
pub mod yaml;
