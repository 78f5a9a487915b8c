"""One-time passwords, compared with those of other programs."""

import random
import shutil
import subprocess

import pytest

from jwtserver import find_otp_step, new_otp_secret, otp_code, otp_uri

# The times of the vectors of RFC 6238, appendix B, and others.
TIMES = [30, 59, 1111111109, 1234567890, 2000000000, 20000000000,
         *random.Random(1).sample(range(60, 2**32), 40)]


def test_codes_are_those_of_pyotp():
    pyotp = pytest.importorskip("pyotp")
    secret = new_otp_secret()

    app = pyotp.parse_uri(otp_uri("Zoë: a/b", secret, "my tool"))

    assert (app.name, app.issuer, app.secret) == ("Zoë: a/b", "my tool", secret)
    for now in TIMES:
        assert otp_code(secret, now // 30) == app.at(now)
        assert find_otp_step(secret, app.at(now), now) == now // 30


def test_codes_are_those_of_oathtool():
    if not shutil.which("oathtool"):
        pytest.skip("oathtool is not installed")
    secret = new_otp_secret()

    for now in TIMES[:12]:
        result = subprocess.run(
            ["oathtool", "--totp", "--base32", "--window=2", f"--now=@{now}", secret],
            capture_output=True, text=True, check=True)

        assert result.stdout.split() == [otp_code(secret, now // 30 + step) for step in range(3)]
