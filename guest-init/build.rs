//! Strips the program: it is loaded into every guest's memory.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Cargo does not apply the profile's `strip` to a package that has an
    // opt-level of its own.
    if std::env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        println!("cargo:rustc-link-arg-bins=-Wl,--strip-all");
    }
}
