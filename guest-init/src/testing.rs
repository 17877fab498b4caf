//! What tests of several modules need.

/// Says that this process is one of [`in_own_namespaces`], and its number.
const INSIDE: &str = "GUEST_INIT_TEST_INSIDE";

/// A text that no other running test process has.
pub(crate) fn unique() -> String {
    std::env::var(INSIDE).unwrap_or_else(|_| std::process::id().to_string())
}

/// Runs `test`, whose name is `name`, in a process that is PID 1 of its own
/// process and mount namespaces. What it leaves is gone when it ends.
pub(crate) fn in_own_namespaces(name: &str, test: fn()) {
    if std::env::var_os(INSIDE).is_some() {
        return test();
    }
    let output = std::process::Command::new("unshare")
        .args(["--pid", "--fork", "--mount-proc", "--kill-child"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--include-ignored", "--nocapture"])
        .env(INSIDE, unique())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
