//! How the programs of an image want to be run.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::lenient;

/// How the programs of an image want to be run. In a [`crate::api::Config`] it
/// overrides what the image itself says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct ImageConfig {
    /// `uid`, `uid:gid` or a name; resolved in the guest. Empty: the image's.
    #[serde(
        default,
        deserialize_with = "lenient::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub user: String,
    /// Absolute path of the directory that programs start in. Empty: the image's.
    #[serde(
        default,
        deserialize_with = "lenient::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub working_dir: String,
    /// What every command is an argument of. Absent: the image's; an empty list:
    /// none.
    #[serde(
        default,
        deserialize_with = "lenient::optional_list",
        skip_serializing_if = "Option::is_none"
    )]
    pub entrypoint: Option<Vec<String>>,
    /// The command unless the user gives one. Absent: the image's; an empty list:
    /// none.
    #[serde(
        default,
        deserialize_with = "lenient::optional_list",
        skip_serializing_if = "Option::is_none"
    )]
    pub cmd: Option<Vec<String>>,
    /// Variables in place of all of the image's. Absent: the image's.
    #[serde(
        default,
        deserialize_with = "lenient::optional_map",
        skip_serializing_if = "Option::is_none"
    )]
    pub env: Option<BTreeMap<String, String>>,
}

impl ImageConfig {
    /// The same with the fields that `over` has in place of its own: `user` and
    /// `working_dir` unless they are empty, the others unless they are `None`.
    #[must_use]
    pub fn merge(self, over: Self) -> Self {
        let text = |own: String, over: String| if over.is_empty() { own } else { over };
        Self {
            user: text(self.user, over.user),
            working_dir: text(self.working_dir, over.working_dir),
            entrypoint: over.entrypoint.or(self.entrypoint),
            cmd: over.cmd.or(self.cmd),
            env: over.env.or(self.env),
        }
    }

    /// The command line: the entrypoint, then the arguments of the user or, if
    /// there are none, the image's command. Empty if there is nothing to run.
    ///
    /// ```
    /// let mut image = flashpan::api::ImageConfig::default();
    /// image.entrypoint = Some(vec!["python3".into()]);
    /// image.cmd = Some(vec!["-i".into()]);
    /// assert_eq!(image.compose_command(&[]), ["python3", "-i"]);
    /// assert_eq!(image.compose_command(&["x.py".into()]), ["python3", "x.py"]);
    /// ```
    #[must_use]
    pub fn compose_command(&self, args: &[String]) -> Vec<String> {
        let of = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
        let mut command = of(&self.entrypoint);
        match args {
            [] => command.extend(of(&self.cmd)),
            args => command.extend_from_slice(args),
        }
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn commands_are_composed_as_docker_does() {
        let none = None;
        let some = |text: &str| Some(words(text));
        for (entrypoint, cmd, args, command) in [
            (none.clone(), none.clone(), "", ""),
            (none.clone(), none.clone(), "ls -l", "ls -l"),
            (some(""), some(""), "", ""),
            (some("/entry"), none.clone(), "", "/entry"),
            (none.clone(), some("sh -l"), "", "sh -l"),
            (some("/entry -v"), some("serve"), "", "/entry -v serve"),
            (
                some("/entry"),
                some("serve"),
                "other now",
                "/entry other now",
            ),
            (none, some("serve"), "ls", "ls"),
        ] {
            let image = ImageConfig {
                entrypoint,
                cmd,
                ..ImageConfig::default()
            };
            let before = image.clone();
            for _ in 0..2 {
                assert_eq!(
                    image.compose_command(&words(args)),
                    words(command),
                    "{image:?}"
                );
            }
            assert_eq!(image, before);
        }
    }

    #[test]
    fn an_empty_list_clears_and_an_absent_one_does_not() {
        let image = |json: &str| -> ImageConfig { serde_json::from_str(json).unwrap() };
        let own = image(
            r#"{"user":"u","working_dir":"/w","entrypoint":["e"],"cmd":["c"],"env":{"A":"1"}}"#,
        );
        assert_eq!(own.clone().merge(image("{}")), own);
        assert_eq!(own.clone().merge(image(r#"{"cmd":null,"user":""}"#)), own);
        let over = image(r#"{"user":"v","entrypoint":[],"env":{"B":"2"}}"#);
        let merged = own.merge(over);
        let json = r#"{"user":"v","working_dir":"/w","entrypoint":[],"cmd":["c"],"env":{"B":"2"}}"#;
        assert_eq!(serde_json::to_string(&merged).unwrap(), json);
    }
}
