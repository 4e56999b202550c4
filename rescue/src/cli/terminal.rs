//! The terminal: progress bars, questions, colour.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{BufRead, IsTerminal, Write};
use std::time::Duration;

use crate::base::refusal::Refusal;
use crate::base::ui::{Progress, Ui};
use crate::guest::is_rescue_system;

/// Progress on standard error, where it is a terminal; notes on standard error always.
#[derive(Debug, Clone, Copy, Default)]
pub struct Terminal;

/// Bars appear only for steps that last: a flash of a bar tells nobody anything.
const REDRAW: Duration = Duration::from_millis(120);

impl Ui for Terminal {
    fn begin(&self, what: &str, total: Option<u64>) -> Box<dyn Progress> {
        let bar = match total {
            Some(total) => ProgressBar::new(total),
            None => ProgressBar::new_spinner(),
        };
        bar.set_draw_target(ProgressDrawTarget::stderr());
        let template = match total {
            Some(_) => "{prefix}  [{bar:30}] {pos}/{len}  {msg}",
            None => "{prefix}  {spinner} {pos}  {msg}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(what.to_owned());
        bar.enable_steady_tick(REDRAW);
        Box::new(Bar(bar))
    }

    fn note(&self, text: &str) {
        eprintln!("{text}");
    }
}

struct Bar(ProgressBar);

impl Progress for Bar {
    fn advance(&self, steps: u64) {
        self.0.inc(steps);
    }
    fn message(&self, text: &str) {
        self.0.set_message(text.to_owned());
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// What follows a receipt on the ISO, where its lines to type name disks as this boot knows them;
/// empty on a helper.
pub fn names_of_this_boot() -> &'static str {
    if !is_rescue_system() {
        return "";
    }
    "These names of disks are those of this boot. After another boot of this ISO, choose `undo`\n\
     in its menu, which finds the disks itself. On a helper the disk has the name that `rescue\n\
     disks` shows there.\n"
}

/// Asks for "yes" in full: the answer changes production data, so a stray key must not be one.
/// Anything else, or the end of the input, is no.
pub fn confirm(question: &str) -> bool {
    ask(question, "Type yes to go on")
}

/// Asks for one thing that is only done after a "yes" of its own. Anything else leaves it out.
pub fn confirm_item(question: &str) -> bool {
    ask(question, "Type yes to do it, anything else to leave it out")
}

fn ask(question: &str, how: &str) -> bool {
    print!("{question} {how}: ");
    let _ = std::io::stdout().flush();
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    if !std::io::stdin().is_terminal() {
        println!();
    }
    read.is_ok() && answer.trim().eq_ignore_ascii_case("yes")
}

/// Asks, unless `yes` was said beforehand.
///
/// # Errors
/// A [`Refusal`] where the answer was not yes.
pub fn agree(yes: bool, question: &str) -> Result<(), Refusal> {
    if yes || confirm(question) {
        return Ok(());
    }
    Err(Refusal::new(
        "the answer was not yes",
        "nothing was changed",
        "run the same command again and answer yes, or add --yes",
    ))
}

/// Whether standard output may be coloured (<https://no-color.org>).
pub fn colours() -> bool {
    std::io::stdout().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::env::var_os("TERM").is_some_and(|term| term != "dumb")
}
