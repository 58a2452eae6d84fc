"""Many runs from one config file, and the table of what they came to.

For the function sweep(add) of a config file; importing these is cheap:

    product, zipped    combinations of field values (`loopjax.sweep.grids`)
    point              another point, to branch from: init_from=point("base", 850)
"""

from loopjax.sweep.branches import point
from loopjax.sweep.grids import product, zipped

__all__ = ["point", "product", "zipped"]
