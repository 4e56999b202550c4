//! Thin entry point: the same binary is the command, its keeper, and `/init` and `/sbin/modprobe`
//! in the ISO.

fn main() -> std::process::ExitCode {
    let other = rescue::live::dispatch().or_else(rescue::in_use::keeper::dispatch);
    other.unwrap_or_else(rescue::cli::main)
}
