//! What happened, in a word: what a caller may act upon, and a binary turns into an exit code.

/// The kind of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// A setting, an option or a name is wrong.
    Setting,
    /// The data cannot be read.
    Data,
    /// There is no such device, or it does not do what it is asked.
    Device,
    /// Memory is full: less at once may succeed.
    Memory,
    /// Training diverged: the loss or a gradient is not finite.
    Diverged,
    /// A checkpoint or a model cannot be read, or does not fit.
    Model,
    /// The hub refused, or cannot be reached.
    Hub,
    /// Another process holds the place.
    Held,
    /// Whoever asked for the work called it off.
    Cancelled,
    /// Anything else: a disk, a thread, a bug.
    Other,
}
