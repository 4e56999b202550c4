//! Stands in for the kubelet in tests: appends a line to /run/verdict/argv with its unit (the last
//! part of its cgroup), its invocation and its argv, each argument as hexadecimal digits after a
//! colon.

use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;

fn main() -> std::io::Result<()> {
    let cgroup = std::fs::read_to_string("/proc/self/cgroup")?;
    let unit = cgroup.trim().rsplit('/').next().unwrap_or_default();
    let invocation = std::env::var("INVOCATION_ID").unwrap_or_default();
    let mut line = format!("ARGV {unit} {invocation} ");
    for argument in std::env::args_os() {
        line.push(':');
        for byte in argument.as_bytes() {
            line.push_str(&format!("{byte:02x}"));
        }
    }
    line.push('\n');
    std::fs::create_dir_all("/run/verdict")?;
    let mut file = std::fs::File::options()
        .append(true)
        .create(true)
        .open("/run/verdict/argv")?;
    file.write_all(line.as_bytes())
}
