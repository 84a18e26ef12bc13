//! What happened, in a word: a caller may act on it, and a binary turns it into an exit code.

/// The kind of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// A setting, an option or a name is wrong.
    Setting,
    /// The data cannot be read.
    Data,
    /// There is no such device, or it failed.
    Device,
    /// Memory ran out: a smaller batch may succeed.
    Memory,
    /// Training diverged: the loss or a gradient is not finite.
    Diverged,
    /// A checkpoint or a model cannot be read, or does not fit.
    Model,
    /// The hub refused, or it or a store of data cannot be reached.
    Hub,
    /// Another process holds the lock.
    Held,
    /// One of the ranks of a training was lost; a start of all of them goes on.
    Lost,
    /// The caller cancelled the work.
    Cancelled,
    /// Anything else: a disk, a thread, a bug.
    Other,
}
