//! Links the program at a fixed address.
//!
//! Every pod has a shim, and every container is set up by a helper, and both are this program again. A
//! position-independent one relocates itself at each start: 1.3 MB of private memory per shim and some
//! milliseconds per start. See docs/adr.
//!
//! A release build folds functions of equal code into one: every codegen unit has copies of its own of what the
//! kinds' types generate.

fn main() {
    // The driver takes the last of -static-pie (which rustc passes), -pie and -no-pie; -static stays.
    if std::env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|env| env == "gnu") {
        println!("cargo::rustc-link-arg-bins=-no-pie");
        println!("cargo::rustc-link-arg-bins=-static");
    }
    // rustc links with LLD on this target, which can fold; nobody here compares functions by address.
    let lld = std::env::var("TARGET").is_ok_and(|target| target == "x86_64-unknown-linux-gnu");
    if lld && std::env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        println!("cargo::rustc-link-arg-bins=-Wl,--icf=all");
    }
    println!("cargo::rerun-if-changed=build.rs");
}
