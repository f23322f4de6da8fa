"""What pyproject.toml cannot say: the shipped folders, which lie beside the package, are installed inside it."""

from setuptools import find_packages, setup

SHIPPED = {f"minimind_trl.shipped.{folder}": folder for folder in ("recipes", "data_configs", "accelerate_configs")}

setup(packages=[*find_packages(include=["minimind_trl", "minimind_trl.*"]), *SHIPPED], package_dir=SHIPPED)
