//! Room for recursion: work on deeply nested expressions runs on a stack of its own, so that no input exhausts ours.

/// Nesting up to which the caller's stack does.
const SHALLOW: usize = 24;
/// Bytes of the stack for deeper nesting; the parser's limits bound what is used of it.
const STACK: usize = 256 << 20;

/// Runs `work` with room for `depth` levels of nesting.
pub(crate) fn run<T: Send>(depth: usize, work: impl FnOnce() -> T + Send) -> T {
    if depth <= SHALLOW {
        return work();
    }
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("cel".to_owned()).stack_size(STACK);
        match thread.spawn_scoped(scope, work).map(std::thread::ScopedJoinHandle::join) {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(why) => panic!("no thread for a deeply nested expression: {why}"),
        }
    })
}
