//! Certificates and keys in PEM files, checked when they are read.

use std::{fs, path::Path};

use rustls::pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{self, PemObject as _},
};

use crate::error::{Error, Result};

/// The certificates of a file: the text, and what it holds; at least one.
pub(super) fn certificates(path: &Path) -> Result<(Vec<u8>, Vec<CertificateDer<'static>>)> {
    let text = read(path)?;
    let all = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| bad(path, &error))?;
    match all.is_empty() {
        true => Err(bad(path, &pem::Error::NoItemsFound)),
        false => Ok((text, all)),
    }
}

/// The private key of a file: the text, and what it holds.
pub(super) fn key(path: &Path) -> Result<(Vec<u8>, PrivateKeyDer<'static>)> {
    let text = read(path)?;
    let key = PrivateKeyDer::from_pem_slice(&text).map_err(|error| bad(path, &error))?;
    Ok((text, key))
}

/// What to say of a file that cannot be used.
pub(super) fn bad(path: &Path, error: &dyn std::error::Error) -> Error {
    Error::usage(format_args!(
        "the certificate or key {} cannot be used: {error}; give a PEM file",
        path.display()
    ))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|error| {
        Error::usage(format_args!(
            "cannot read the certificate or key {}: {error}; check the path and its permissions",
            path.display()
        ))
    })
}
