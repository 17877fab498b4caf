use std::fs;

use proptest::prelude::*;

use super::*;

fn parse(spec: &str) -> Result<EnvVar, EnvError> {
    EnvVar::parse_with(spec, |name| match name {
        "SET" => Some("from-env".into()),
        "EMPTY" => Some("".into()),
        _ => None,
    })
}

#[test]
fn accepted() {
    for (spec, name, value) in [
        ("A=1", "A", "1"),
        ("A=", "A", ""),
        ("A=b=c", "A", "b=c"),
        (" A = 1 ", "A", " 1 "),
        ("SET", "SET", "from-env"),
        (" SET ", "SET", "from-env"),
        ("EMPTY", "EMPTY", ""),
    ] {
        let variable = parse(spec).unwrap();
        assert_eq!(variable.name, name, "{spec:?}");
        assert_eq!(variable.value, value, "{spec:?}");
    }
}

#[test]
fn rejected() {
    let empty = "environment variable name cannot be empty";
    for (spec, error, code) in [
        ("", empty, "env_name_empty"),
        ("=1", empty, "env_name_empty"),
        ("  =1", empty, "env_name_empty"),
        (
            "UNSET",
            "environment variable is not set $UNSET",
            "env_not_set",
        ),
        (
            "A\0=1",
            r#"environment variable name is invalid "A\0""#,
            "env_name_invalid",
        ),
        (
            "A=\0",
            "environment variable value is invalid: $A contains a NUL",
            "env_value_invalid",
        ),
    ] {
        let found = parse(spec).unwrap_err();
        assert_eq!(found.to_string(), error, "{spec:?}");
        assert_eq!(found.code().as_str(), code, "{spec:?}");
    }
}

#[test]
fn a_variable_of_this_process_is_found() {
    let variable: EnvVar = "PATH".parse().unwrap();
    assert_eq!(variable.value, std::env::var("PATH").unwrap());
}

#[test]
fn a_file_has_one_variable_per_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("env");
    let text = "# a comment\n\n  A=1  \nB='quoted'\nexport C=3\nPATH\nA=2";
    fs::write(&file, text).unwrap();
    let variables = parse_env_file(&file).unwrap();
    assert_eq!(variables["A"], "2");
    assert_eq!(variables["B"], "'quoted'");
    assert_eq!(variables["export C"], "3");
    assert_eq!(variables["PATH"], std::env::var("PATH").unwrap());
    assert_eq!(variables.len(), 4);
}

#[test]
fn an_error_names_file_and_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("env");
    fs::write(&file, "A=1\n=2\n").unwrap();
    let error = parse_env_file(&file).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "parse env file line {}:2: environment variable name cannot be empty",
            file.display()
        )
    );
    assert_eq!(error.code().as_str(), "env_file_line");

    let missing = dir.path().join("missing");
    let error = parse_env_file(&missing).unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with(&format!("read env file: {}: ", missing.display())),
        "{text}"
    );
    assert_eq!(error.code().as_str(), "env_file_unreadable");
    let two_lines = parse_env_file("/no\nsuch\u{1b}").unwrap_err().to_string();
    assert!(
        two_lines.starts_with("read env file: /no such?: "),
        "{two_lines}"
    );
}

#[test]
fn long_lines_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("env");
    let longest = format!("A={}\nB=1\n", "x".repeat(MAX_ENV_LINE - 2));
    fs::write(&file, &longest).unwrap();
    assert_eq!(parse_env_file(&file).unwrap().len(), 2);
    fs::write(&file, format!("A{longest}")).unwrap();
    let error = parse_env_file(&file).unwrap_err().to_string();
    assert!(error.contains("more than 1048576 bytes"), "{error}");
    fs::write(&file, b"A=\xff\n").unwrap();
    let error = parse_env_file(&file).unwrap_err().to_string();
    assert!(error.contains("not UTF-8"), "{error}");
}

#[test]
fn later_variables_win_and_specifications_are_later_than_files() {
    let dir = tempfile::tempdir().unwrap();
    let files = [dir.path().join("1"), dir.path().join("2")];
    fs::write(&files[0], "A=file1\nB=file1\nC=file1\n").unwrap();
    fs::write(&files[1], "B=file2\nC=file2\n").unwrap();
    let variables = parse_envs(&["C=spec1", "C=spec2"], &files).unwrap();
    let expected = [("A", "file1"), ("B", "file2"), ("C", "spec2")];
    assert!(
        variables
            .iter()
            .map(|(n, v)| (n.as_str(), v.as_str()))
            .eq(expected)
    );
    assert!(parse_envs::<&str, &str>(&[], &[]).unwrap().is_empty());
}

proptest! {
    #[test]
    fn no_text_is_a_problem(spec in any::<String>()) {
        let _ = parse(&spec);
        let _ = spec.parse::<EnvVar>();
    }

    #[test]
    fn what_is_written_is_read_again(name in "[^=\0]{1,16}", value in "[^\0]{0,16}") {
        let name = name.trim().to_owned();
        prop_assume!(!name.is_empty());
        let variable = EnvVar { name, value };
        prop_assert_eq!(parse(&variable.to_string()).unwrap(), variable);
    }
}
