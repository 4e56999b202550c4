//! Settings from the kernel's command line: `rescue.auto=repair`,
//! `rescue.now=2024-01-01T00:00:00Z`, ….

use std::time::Duration;

use super::power::Stop;

/// What to do without asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auto {
    /// Show the findings.
    Inspect,
    /// Mend them.
    Repair,
    /// Take the newest repair back, or the one of `rescue.run`.
    Undo,
}

/// What follows an unattended run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// Off, or on again.
    Stop(Stop),
    /// A shell on the consoles.
    Shell,
}

/// The settings of the ISO.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// `rescue.auto=inspect|repair|undo`.
    pub auto: Option<Auto>,
    /// `rescue.after=poweroff|reboot|shell`, power off when it is not said.
    pub after: After,
    /// `rescue.all-nodes`: an unattended repair of several systems is meant, each on disks of its
    /// own.
    pub all_nodes: bool,
    /// `rescue.wait=SECONDS`: how long to wait for a first disk.
    pub wait: Duration,
    /// Flags of the command line and their values, in the order given; see [`Options::flags_for`].
    flags: Vec<(&'static Flag, Option<String>)>,
    /// What could not be understood, one sentence each. An unattended run refuses to guess what was
    /// meant.
    pub problems: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            auto: None,
            after: After::Stop(Stop::PowerOff),
            all_nodes: false,
            wait: Duration::from_secs(30),
            flags: Vec::new(),
            problems: Vec::new(),
        }
    }
}

/// A kernel argument that is a flag of the command line by the same name: `rescue.days=30` is
/// `--days 30`.
#[derive(Debug, PartialEq, Eq)]
struct Flag {
    name: &'static str,
    takes: Takes,
    /// The sub-commands that know it.
    commands: &'static [&'static str],
}

#[derive(Debug, PartialEq, Eq)]
enum Takes {
    Value,
    /// Separated by commas; the flag is repeated for each.
    List,
    /// `rescue.in-place` or `rescue.in-place=yes`.
    Nothing,
}

const FLAGS: &[Flag] = &[
    Flag {
        name: "now",
        takes: Takes::Value,
        commands: &["inspect", "repair", "undo"],
    },
    Flag {
        name: "only",
        takes: Takes::List,
        commands: &["inspect", "repair"],
    },
    Flag {
        name: "skip",
        takes: Takes::List,
        commands: &["inspect", "repair"],
    },
    Flag {
        name: "allow",
        takes: Takes::List,
        commands: &["repair"],
    },
    Flag {
        name: "free-target",
        takes: Takes::Value,
        commands: &["inspect", "repair"],
    },
    Flag {
        name: "days",
        takes: Takes::Value,
        commands: &["repair"],
    },
    Flag {
        name: "reuse-keys",
        takes: Takes::Nothing,
        commands: &["repair"],
    },
    Flag {
        name: "san",
        takes: Takes::List,
        commands: &["repair"],
    },
    Flag {
        name: "renew-ca",
        takes: Takes::Nothing,
        commands: &["repair"],
    },
    Flag {
        name: "ca-days",
        takes: Takes::Value,
        commands: &["repair"],
    },
    Flag {
        name: "node",
        takes: Takes::Value,
        commands: &["repair", "undo"],
    },
    Flag {
        name: "run",
        takes: Takes::Value,
        commands: &["undo"],
    },
    Flag {
        name: "patch-kubelet",
        takes: Takes::Value,
        commands: &["repair"],
    },
    Flag {
        name: "in-place",
        takes: Takes::Nothing,
        commands: &["repair"],
    },
    Flag {
        name: "spill",
        takes: Takes::Value,
        commands: &["inspect", "repair", "undo"],
    },
    Flag {
        name: "no-fsck",
        takes: Takes::Nothing,
        commands: &["repair", "undo"],
    },
    Flag {
        name: "accept-loss",
        takes: Takes::Nothing,
        commands: &["repair"],
    },
    Flag {
        name: "declare-dead",
        takes: Takes::List,
        commands: &["repair", "undo"],
    },
    Flag {
        name: "unproven",
        takes: Takes::Nothing,
        commands: &["repair"],
    },
    Flag {
        name: "trust",
        takes: Takes::List,
        commands: &["inspect", "repair"],
    },
    Flag {
        name: "node-name",
        takes: Takes::Value,
        commands: &["inspect", "repair"],
    },
];

impl Options {
    /// Reads `/proc/cmdline`. Of two settings of one name the last wins.
    pub fn parse(command_line: &str) -> Self {
        let mut options = Self::default();
        for word in command_line.split_whitespace() {
            let Some(setting) = word.strip_prefix("rescue.") else {
                continue;
            };
            let (name, value) = setting.split_once('=').unwrap_or((setting, ""));
            let result = match FLAGS.iter().find(|flag| flag.name == name) {
                Some(flag) => options.set_flag(flag, value),
                None => options.set(name, value),
            };
            if let Err(problem) = result {
                options.problems.push(format!("{word}: {problem}"));
            }
        }
        options
    }

    /// The flags that a sub-command is given.
    pub fn flags_for(&self, command: &str) -> Vec<String> {
        let mut words = Vec::new();
        for (flag, value) in self
            .flags
            .iter()
            .filter(|(flag, _)| flag.commands.contains(&command))
        {
            let name = format!("--{}", flag.name);
            match value {
                None => words.push(name),
                Some(value) if flag.takes == Takes::List => {
                    words.extend(
                        value
                            .split(',')
                            .flat_map(|one| [name.clone(), one.to_owned()]),
                    );
                }
                Some(value) => words.extend([name, value.clone()]),
            }
        }
        words
    }

    fn set_flag(&mut self, flag: &'static Flag, value: &str) -> Result<(), &'static str> {
        self.flags.retain(|(given, _)| *given != flag);
        match (&flag.takes, value) {
            (Takes::Nothing, "" | "yes") => self.flags.push((flag, None)),
            (Takes::Nothing, "no") => {}
            (Takes::Nothing, _) => return Err("yes or no"),
            (_, "") => return Err("a value is missing"),
            _ => self.flags.push((flag, Some(value.to_owned()))),
        }
        Ok(())
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), &'static str> {
        match (name, value) {
            ("auto", "inspect") => self.auto = Some(Auto::Inspect),
            ("auto", "repair") => self.auto = Some(Auto::Repair),
            ("auto", "undo") => self.auto = Some(Auto::Undo),
            ("auto", "no" | "none") => self.auto = None,
            ("auto", _) => return Err("inspect, repair, undo or none"),
            ("after", "poweroff") => self.after = After::Stop(Stop::PowerOff),
            ("after", "reboot") => self.after = After::Stop(Stop::Reboot),
            ("after", "shell") => self.after = After::Shell,
            ("after", _) => return Err("poweroff, reboot or shell"),
            ("all-nodes", "" | "yes") => self.all_nodes = true,
            ("all-nodes", "no") => self.all_nodes = false,
            ("all-nodes", _) => return Err("yes or no"),
            ("wait", _) => {
                self.wait = Duration::from_secs(value.parse().map_err(|_| "a number of seconds")?)
            }
            _ => return Err("there is no such setting"),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_settings_among_the_kernels_own() {
        let options = Options::parse(
            "BOOT_IMAGE=/boot/vmlinuz quiet console=ttyS0 rescue.all-nodes rescue.auto=inspect \
             rescue.after=reboot rescue.days=30 rescue.only=disk-full,certificates rescue.wait=5 \
             rescue.in-place rescue.days=90 rescue.auto=repair\n",
        );
        assert_eq!(options.auto, Some(Auto::Repair));
        assert!(options.all_nodes);
        assert_eq!(options.after, After::Stop(Stop::Reboot));
        assert_eq!(options.wait, Duration::from_secs(5));
        assert_eq!(
            options.flags_for("inspect"),
            ["--only", "disk-full", "--only", "certificates"]
        );
        let repair = [
            "--only",
            "disk-full",
            "--only",
            "certificates",
            "--in-place",
            "--days",
            "90",
        ];
        assert_eq!(options.flags_for("repair"), repair);
        assert_eq!(options.problems, Vec::<String>::new());
    }

    #[test]
    fn every_flag_is_one_of_the_command_line() {
        for flag in FLAGS {
            for command in flag.commands {
                let sample = match flag.name {
                    "now" => "2024-01-01T00:00:00Z",
                    "only" | "skip" | "allow" => "disk-full",
                    "patch-kubelet" => "never",
                    "san" => "10.0.0.1,vip.example.org",
                    _ => "10",
                };
                let value = if flag.takes == Takes::Nothing {
                    String::new()
                } else {
                    format!("={sample}")
                };
                let options = Options::parse(&format!("rescue.{}{value}", flag.name));
                let mut words = vec![(*command).to_owned(), "disk.img".to_owned()];
                words.extend(options.flags_for(command));
                assert!(crate::cli::understands(&words), "{words:?}");
            }
        }
    }

    #[test]
    fn says_what_it_does_not_understand() {
        let options = Options::parse(
            "rescue.auto=repiar rescue.colour=blue rescue.wait=soon rescue.in-place=maybe \
             rescue.days=",
        );
        assert_eq!(options.auto, None);
        assert_eq!(options.problems.len(), 5, "{:?}", options.problems);
        assert!(options.problems[0].starts_with("rescue.auto=repiar: "));
    }

    #[test]
    fn asks_and_powers_off_when_nothing_is_said() {
        assert_eq!(Options::parse("quiet"), Options::default());
    }
}
