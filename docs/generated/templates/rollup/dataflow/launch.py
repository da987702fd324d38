"""What the launcher of the flex template runs: submits `rollup` with the parameters as flags, and ends.

The launcher adds --runner, --project, --region, --job_name, --temp_location, --staging_location and --template_location.
"""

import os
import sys

from tiebeam import cli


def flags(given: list[str], image: str | None) -> list[str]:
    """The flags given, but for parameters left empty; workers run in the image of the launcher unless another is named."""
    kept = [flag for flag in given if not flag.endswith("=")]
    if image and not any(flag.startswith("--sdk_container_image=") for flag in kept):
        kept += [f"--sdk_container_image={image}", "--sdk_location=container"]
    return kept


if __name__ == "__main__":
    sys.exit(cli.main(["submit", "rollup", *flags(sys.argv[1:], os.environ.get("WORKER_IMAGE"))]))
