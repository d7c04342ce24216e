"""The package as a whole: what its import costs, and that everything public is documented."""

import inspect
import subprocess
import sys

import vanishing as vg


def test_the_import_is_light():
    """torch, Altair, matplotlib, SciPy, joblib: not before they are used."""
    heavy = ("torch", "altair", "matplotlib", "scipy", "sklearn", "joblib", "IPython", "ipywidgets")
    code = f"import sys, vanishing; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_everything_public_is_reached_and_documented():
    """A docstring on every public function, class and module, and on every public method."""
    missing = []
    for name in vg.__all__:
        thing = getattr(vg, name)
        if callable(thing) or inspect.ismodule(thing):
            if not (inspect.getdoc(thing) or "").strip():
                missing.append(name)
            for method, function in vars(thing).items() if inspect.isclass(thing) else ():
                if (
                    inspect.isfunction(function)
                    and not method.startswith("_")
                    and not inspect.getdoc(getattr(thing, method))
                ):
                    missing.append(f"{name}.{method}")
    assert not missing


def test_names_that_are_functions_though_a_module_has_the_same_name():
    """`vg.softmax(z)`, whatever was imported before."""
    import vanishing.mean_field
    import vanishing.softmax
    import vanishing.sweep  # noqa: F401

    assert all(inspect.isfunction(f) for f in (vg.softmax, vg.mean_field, vg.sweep))


def test_an_unknown_name_is_an_attribute_error():
    try:
        vg.sofmax  # noqa: B018
    except AttributeError as error:
        assert "sofmax" in str(error)
    else:
        raise AssertionError("no error")
