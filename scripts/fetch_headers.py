"""Fetches the headers of ONNX Runtime or TensorRT into the user's cache, where the build finds them.

    python scripts/fetch_headers.py onnxruntime [--archive FILE|DIR] [--cache-dir DIR]
    python scripts/fetch_headers.py tensorrt    [--archive FILE|DIR] [--cache-dir DIR]

Prints the directory on standard output, and the version, source and sha256 on standard error. It needs no installed
package: on Debian and Ubuntu it works on a fresh machine, elsewhere it says what to download.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mra_export.errors import MraExportError
from mra_export.native.headers import HEADER_KINDS, fetch_headers, find_headers


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=HEADER_KINDS)
    parser.add_argument("--archive", type=Path, help="release archive or directory to take the headers from")
    parser.add_argument("--cache-dir", type=Path, help="default: mra-export/headers under the user's cache directory")
    parser.add_argument("--if-missing", action="store_true", help="fetch nothing where headers are found already")
    arguments = parser.parse_args()
    try:
        headers = find_headers(arguments.kind) if arguments.if_missing and not arguments.archive else None
        if headers is None:
            headers = fetch_headers(arguments.kind, archive=arguments.archive, cache_dir=arguments.cache_dir)
    except MraExportError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    detail = f", sha256 {headers.sha256}" if headers.sha256 else ""
    print(f"{headers.kind} headers, version {headers.version}, from {headers.source}{detail}", file=sys.stderr)
    print(headers.path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
