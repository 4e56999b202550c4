//! `rescue` itself, built with fault injection for the crash tests; as the ISO's program too.

fn main() -> std::process::ExitCode {
    let other = rescue::live::dispatch().or_else(rescue::in_use::keeper::dispatch);
    other.unwrap_or_else(rescue::cli::main)
}
