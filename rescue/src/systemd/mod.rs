//! Unit files and drop-ins by systemd's own rules: what a unit will start on the next boot.
//!
//! The rules are those of systemd 252; they have been the same since 2017 (systemd 232) unless a
//! comment says otherwise. `tests/tests/systemd_verdict.rs` compares the result with a real
//! systemd.

mod enabled;
pub mod environment;
pub mod exec;
pub(crate) mod glob;
mod install;
pub mod lines;
pub mod search;
mod specifiers;
mod started;
pub mod without_flag;
pub mod words;

use crate::guest::{Guest, GuestPath};
use crate::tree::TreeError;

pub use enabled::{is_masked, pulled_in_by, unit_names};
pub use environment::Via;
use exec::ExecLine;
pub use exec::{Command, Origin, Template};
pub use install::{InstallLink, install_links};
use search::Found;
use specifiers::Specifiers;
pub use started::{is_started, units_that_run};

/// A unit as systemd will load it.
#[derive(Debug, Clone, Default)]
pub struct Unit {
    /// The name systemd knows it by; another than the one asked for when that is an alias.
    pub name: String,
    /// Its own file; `None` when there is none.
    pub fragment: Option<GuestPath>,
    /// Whether it is masked: an empty file, or a link to /dev/null. systemd refuses to start it.
    pub masked: bool,
    /// Drop-ins in the order in which they are applied. Empty ones stand here too: they hide others
    /// of the same name.
    pub drop_ins: Vec<GuestPath>,
    /// Every variable with its effective value, in the order of its first assignment.
    pub environment: Vec<Variable>,
    /// Commands of `ExecStart=`.
    pub exec_start: Vec<Command>,
    /// `EnvironmentFile=` settings in force.
    pub environment_files: Vec<EnvironmentFile>,
    /// Why systemd will not start it, besides being masked or missing.
    pub refusals: Vec<String>,
    /// What could not be followed exactly on a powered-off disk: specifiers that only the running
    /// system knows, unreadable files.
    pub uncertain: Vec<String>,
    kind: String,
    unset: Vec<String>,
}

/// One variable of a unit's environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variable {
    /// Name.
    pub name: String,
    /// Value.
    pub value: String,
    /// Where it was set.
    pub origin: Origin,
    /// By what; an environment file cannot be overridden by `Environment=`.
    pub via: Via,
}

/// An `EnvironmentFile=` setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvironmentFile {
    /// Path or pattern.
    pub pattern: String,
    /// Whether it may be missing (`-`).
    pub optional: bool,
    /// Where it is set.
    pub origin: Origin,
    /// Files that were read for it.
    pub files: Vec<GuestPath>,
}

/// A setting with where it stands, on its way from the files to the unit.
struct Setting {
    key: String,
    value: String,
    origin: Origin,
}

impl Unit {
    /// Loads `name` (`kubelet.service`) with its drop-ins. `None` when there is no file of that
    /// name.
    pub fn load(guest: &Guest, name: &str) -> Option<Self> {
        let located = search::locate(guest, name);
        let mut unit = Self {
            name: located.id,
            ..Self::default()
        };
        match located.found? {
            Found::Masked(path) => {
                unit.fragment = Some(path);
                unit.masked = true;
                return Some(unit);
            }
            Found::File(path) => unit.fragment = Some(path),
        }
        unit.drop_ins = search::drop_ins(guest, &located.names);
        let specifiers = Specifiers::new(guest, &unit.name, unit.fragment.as_ref());
        if let Some(fragment) = unit.fragment.clone()
            && let Err(why) = unit.read(guest, &fragment, &specifiers)
        {
            unit.refusals.push(why);
        }
        for drop_in in unit.drop_ins.clone() {
            // systemd skips the rest of a broken drop-in and starts the unit without it.
            if let Err(why) = unit.read(guest, &drop_in, &specifiers) {
                unit.uncertain
                    .push(format!("systemd ignores part of a drop-in: {why}"));
            }
        }
        unit.read_environment_files(guest);
        let unset = std::mem::take(&mut unit.unset);
        unit.environment.retain(|variable| {
            let pair = format!("{}={}", variable.name, variable.value);
            !unset
                .iter()
                .any(|unset| *unset == variable.name || *unset == pair)
        });
        unit.unset = unset;
        unit.verify();
        Some(unit)
    }

    /// The value of a variable.
    pub fn variable(&self, name: &str) -> Option<&Variable> {
        self.environment
            .iter()
            .find(|variable| variable.name == name)
    }

    /// The first (for a daemon: the only) command of `ExecStart=`.
    pub fn command(&self) -> Option<&Command> {
        self.exec_start.first()
    }

    /// What would be started: argv of the first command; empty when nothing would be.
    pub fn argv(&self) -> Vec<String> {
        self.expanded().into_iter().map(|(_, word)| word).collect()
    }

    /// [`Unit::argv`], each word with the index of the template in [`Unit::command`] it was made
    /// from.
    pub fn expanded(&self) -> Vec<(usize, String)> {
        self.command()
            .map(|command| {
                command.expand(|name| self.variable(name).map(|variable| variable.value.as_str()))
            })
            .unwrap_or_default()
    }

    /// [`Unit::argv`], each word with where it stands: the variable's assignment where a variable
    /// brought it, else `ExecStart=`.
    pub fn argv_with_origins(&self) -> Vec<(String, &Origin)> {
        let Some(command) = self.command() else {
            return Vec::new();
        };
        self.expanded()
            .into_iter()
            .map(|(index, word)| {
                let variable = command
                    .words
                    .get(index)
                    .filter(|_| command.expands_variables)
                    .and_then(|template| environment::references(&template.text).into_iter().next())
                    .and_then(|name| self.variable(&name));
                (
                    word,
                    variable.map_or(&command.origin, |variable| &variable.origin),
                )
            })
            .collect()
    }

    fn read(
        &mut self,
        guest: &Guest,
        path: &GuestPath,
        specifiers: &Specifiers,
    ) -> Result<(), String> {
        if search::is_null(guest, path) {
            return Ok(());
        }
        let bytes = guest.read(path).map_err(|error| error.to_string())?;
        let parsed = lines::parse(&bytes);
        for assignment in parsed.assignments {
            if assignment.section != "Service" {
                continue;
            }
            let origin = Origin {
                path: path.clone(),
                line: assignment.first_line,
                last_line: assignment.last_line,
            };
            let setting = Setting {
                key: assignment.key,
                value: assignment.value,
                origin,
            };
            self.take(&setting, specifiers)
                .map_err(|why| format!("{}: {why}", setting.origin))?;
        }
        match parsed.stopped {
            Some((line, why)) => Err(format!("{path}:{line}: {why}")),
            None => Ok(()),
        }
    }

    /// One setting of [Service]; an error makes systemd stop reading the file.
    fn take(&mut self, setting: &Setting, specifiers: &Specifiers) -> Result<(), &'static str> {
        let mut unresolved = Vec::new();
        match setting.key.as_str() {
            "Environment" => self.take_environment(setting, specifiers, &mut unresolved),
            "EnvironmentFile" => self.take_environment_file(setting, specifiers, &mut unresolved),
            "UnsetEnvironment" if setting.value.is_empty() => self.unset.clear(),
            "UnsetEnvironment" => self.unset.extend(plain_words(&setting.value)),
            "Type" => self.kind.clone_from(&setting.value),
            "ExecStart" => {
                match exec::parse(&setting.value, &setting.origin, specifiers, &mut unresolved) {
                    ExecLine::Reset => self.exec_start.clear(),
                    ExecLine::Commands(commands) => self.exec_start.extend(commands),
                    ExecLine::Invalid(why) => return Err(why),
                }
            }
            _ => {}
        }
        let origin = &setting.origin;
        self.uncertain.extend(
            unresolved
                .into_iter()
                .map(|specifier| format!("{origin}: only the running system knows {specifier}")),
        );
        Ok(())
    }

    fn take_environment(
        &mut self,
        setting: &Setting,
        specifiers: &Specifiers,
        unresolved: &mut Vec<String>,
    ) {
        if setting.value.is_empty() {
            self.environment.clear();
            return;
        }
        let mut at = 0;
        // Words before an invalid one count, those after it do not.
        while let Ok(Some(word)) = words::next_word(&setting.value, at, words::Rules::SETTING) {
            at = word.end;
            let Ok(resolved) = specifiers.resolve(&word.text, unresolved) else {
                continue;
            };
            if let Some((name, value)) = resolved.split_once('=')
                && environment::is_valid_name(name)
            {
                self.set(name, value, setting.origin.clone(), Via::Environment);
            }
        }
    }

    fn take_environment_file(
        &mut self,
        setting: &Setting,
        specifiers: &Specifiers,
        unresolved: &mut Vec<String>,
    ) {
        if setting.value.is_empty() {
            self.environment_files.clear();
            return;
        }
        let Ok(resolved) = specifiers.resolve(&setting.value, unresolved) else {
            return;
        };
        let (optional, pattern) = match resolved.strip_prefix('-') {
            Some(pattern) => (true, pattern),
            None => (false, resolved.as_str()),
        };
        // A relative path is ignored with a warning; so is a quoted one.
        if pattern.starts_with('/') {
            self.environment_files.push(EnvironmentFile {
                pattern: pattern.to_owned(),
                optional,
                origin: setting.origin.clone(),
                files: Vec::new(),
            });
        }
    }

    fn read_environment_files(&mut self, guest: &Guest) {
        for index in 0..self.environment_files.len() {
            let Some(setting) = self.environment_files.get(index).cloned() else {
                continue;
            };
            let files = glob::matches(guest, &setting.pattern);
            if files.is_empty() && !setting.optional {
                let why = format!(
                    "{}: EnvironmentFile={} is not there",
                    setting.origin, setting.pattern
                );
                self.refusals.push(why);
            }
            for file in &files {
                match read_environment_file(guest, file) {
                    Ok(variables) => {
                        for variable in variables {
                            let origin = Origin {
                                path: file.clone(),
                                line: variable.first_line,
                                last_line: variable.last_line,
                            };
                            self.set(
                                &variable.name,
                                &variable.value,
                                origin,
                                Via::EnvironmentFile,
                            );
                        }
                    }
                    Err(why) if setting.optional => {
                        self.uncertain
                            .push(format!("systemd ignores {file}: {why}"));
                    }
                    Err(why) => self.refusals.push(format!("{file}: {why}")),
                }
            }
            if let Some(setting) = self.environment_files.get_mut(index) {
                setting.files = files;
            }
        }
    }

    fn set(&mut self, name: &str, value: &str, origin: Origin, via: Via) {
        let variable = Variable {
            name: name.to_owned(),
            value: value.to_owned(),
            origin,
            via,
        };
        match self.environment.iter_mut().find(|there| there.name == name) {
            Some(there) => *there = variable,
            None => self.environment.push(variable),
        }
    }

    /// `service_verify()`.
    fn verify(&mut self) {
        if self.exec_start.is_empty() && self.refusals.is_empty() {
            self.refusals.push("the unit has no ExecStart=".to_owned());
        }
        if self.exec_start.len() > 1 && self.kind != "oneshot" {
            self.refusals.push(
                "the unit has more than one ExecStart=, which only Type=oneshot may have"
                    .to_owned(),
            );
        }
    }
}

fn plain_words(text: &str) -> Vec<String> {
    words::split(text, words::Rules::SETTING)
        .unwrap_or_default()
        .into_iter()
        .map(|word| word.text)
        .collect()
}

fn read_environment_file(
    guest: &Guest,
    path: &GuestPath,
) -> Result<Vec<environment::FileVariable>, String> {
    let bytes = guest
        .read(path)
        .map_err(|error: TreeError| error.to_string())?;
    environment::parse_file(&bytes).map_err(str::to_owned)
}

#[cfg(test)]
mod tests;
