//! `rescue` itself, built with fault injection for the crash tests.

fn main() -> std::process::ExitCode {
    rescue::cli::main()
}
