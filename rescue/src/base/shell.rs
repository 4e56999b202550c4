//! Words for the shell: every line that a user is told to type can be copied as it stands.

use std::path::Path;

/// A path, quoted for the shell where it needs that.
pub fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    match text
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "/._-+:@,".contains(c))
    {
        true => text,
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_quoted_where_they_need_it() {
        assert_eq!(quoted(Path::new("it's")), r"'it'\''s'");
        assert_eq!(quoted(Path::new("/dev/vda1")), "/dev/vda1");
    }
}
