//! `rescue` itself, built with fault injection for the crash tests; as the ISO's program too.

fn main() -> std::process::ExitCode {
    rescue::live::dispatch().unwrap_or_else(rescue::cli::main)
}
