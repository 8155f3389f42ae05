//! `Signal` of `runtime.v1`: names by number. Numbers are those of the interface, not the kernel's.

const FIRST: [&str; 36] = [
    "",
    "SIGABRT",
    "SIGALRM",
    "SIGBUS",
    "SIGCHLD",
    "SIGCLD",
    "SIGCONT",
    "SIGFPE",
    "SIGHUP",
    "SIGILL",
    "SIGINT",
    "SIGIO",
    "SIGIOT",
    "SIGKILL",
    "SIGPIPE",
    "SIGPOLL",
    "SIGPROF",
    "SIGPWR",
    "SIGQUIT",
    "SIGSEGV",
    "SIGSTKFLT",
    "SIGSTOP",
    "SIGSYS",
    "SIGTERM",
    "SIGTRAP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGUSR1",
    "SIGUSR2",
    "SIGVTALRM",
    "SIGWINCH",
    "SIGXCPU",
    "SIGXFSZ",
    "SIGRTMIN",
];

/// The name of a signal; empty for none and for unknown numbers.
pub(super) fn name(number: i32) -> String {
    match usize::try_from(number).unwrap_or(0) {
        n @ 0..=35 => FIRST[n].to_owned(),
        n @ 36..=50 => format!("SIGRTMIN+{}", n - 35),
        n @ 51..=64 => format!("SIGRTMAX-{}", 65 - n),
        65 => "SIGRTMAX".to_owned(),
        _ => String::new(),
    }
}

/// The number of a signal; 0 for none and for unknown names.
pub(super) fn number(wanted: &str) -> i32 {
    if wanted.is_empty() {
        return 0;
    }
    (1..=65).find(|n| name(*n) == wanted).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_those_of_the_interface() {
        for (n, text) in [(23, "SIGTERM"), (38, "SIGRTMIN+3"), (51, "SIGRTMAX-14"), (64, "SIGRTMAX-1")] {
            assert_eq!((name(n).as_str(), number(text)), (text, n));
        }
        assert_eq!((name(66), number("SIGNONE"), number("")), (String::new(), 0, 0));
    }
}
