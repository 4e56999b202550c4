//! Thin entry point: the same binary is the command, and `/init` and `/sbin/modprobe` in the ISO.

fn main() -> std::process::ExitCode {
    rescue::live::dispatch().unwrap_or_else(rescue::cli::main)
}
