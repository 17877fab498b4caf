//! Makes the program small: it is loaded into every guest's memory.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=no-unwind-tables.ld");
    if !std::env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        return;
    }
    let directory = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    let arguments = [
        // Cargo does not apply the profile's `strip` to a package that has an
        // opt-level of its own.
        "-Wl,--strip-all".to_owned(),
        "-Wl,--no-eh-frame-hdr".to_owned(),
        format!("{directory}/no-unwind-tables.ld"),
        // At a fixed address, without the table of relocations that the program
        // would apply to itself first. After rustc's own `-static-pie`.
        "-no-pie".to_owned(),
        "-static".to_owned(),
    ];
    for argument in arguments {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
}
