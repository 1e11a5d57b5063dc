//! Finds `executemany` of `sqlite3`'s cursors and connections, whose executions are one statement, and `execute`.

use std::path::PathBuf;

use super::{
    interpreter::{Finder, Found},
    methods::Module,
};

/// Methods of cursors and connections in a process, for uprobes: offsets in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchProbes {
    /// The file: of a module `_sqlite3`, or the interpreter's where that is built in.
    pub file: PathBuf,
    /// `Cursor.executemany` and `Connection.executemany`, which up to 3.10 calls the former.
    pub many: [u64; 2],
    /// `Cursor.execute` and `Connection.execute`.
    pub one: [u64; 2],
}

/// Looks for it in a process, in each module of that name; none where they are not loaded yet or not understood.
pub(super) fn find(finder: &mut Finder, pid: u32) -> Vec<BatchProbes> {
    let Ok(Found::Interpreter(interpreter)) = finder.find(pid) else {
        return Vec::new();
    };
    Module::all(finder, pid, &interpreter, "_sqlite3")
        .into_iter()
        .filter_map(|module| {
            let [_, cursors, cursor] = module.methods(["fetchone", "executemany", "execute"])?;
            let [_, connections, connection] =
                module.methods(["commit", "executemany", "execute"])?;
            Some(BatchProbes {
                many: [module.offset(&cursors)?, module.offset(&connections)?],
                one: [module.offset(&cursor)?, module.offset(&connection)?],
                file: module.file,
            })
        })
        .collect()
}
