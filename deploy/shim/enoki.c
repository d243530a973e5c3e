/* The CNI plugin as one static executable: a Python interpreter with `plugin/` inside, for hosts that have no Python.

   The file takes the place of CPython's generated `config.c` (Modules/config.c.in: the table of built-in modules), so that
   the linker leaves every other module out, and embeds the interpreter as the C API documents it (PyConfig,
   PyImport_FrozenModules). `frozen.h` is written by build.py.

   It reads no file, no PYTHON* variable and no locale: what a host has or lacks cannot change what the plugin does. */
#include <Python.h>

#include "frozen.h"

/* What plugin/shim.py imports, and what the interpreter needs to start. Without `time` the interpreter's own zipimport
   does not load, which it takes calmly: a start without it is shorter, and there is no archive to import from. */
#define BUILTINS(X) X(_abc) X(_codecs) X(_imp) X(_io) X(_signal) X(_socket) X(_thread) X(_weakref) X(posix)

#define DECLARE(name) extern PyObject *PyInit_##name(void);
BUILTINS(DECLARE)
extern PyObject *PyMarshal_Init(void);
extern PyObject *_PyWarnings_Init(void);

#define ENTRY(name) {#name, PyInit_##name},
struct _inittab _PyImport_Inittab[] = {
    BUILTINS(ENTRY)
    {"builtins", NULL},
    {"sys", NULL},
    {"marshal", PyMarshal_Init},
    {"_warnings", _PyWarnings_Init},
    {NULL, NULL},
};

/* Given, so that the interpreter does not look for itself and its library along PATH; neither exists, and no path
   below a file that does not exist can be made to exist by a user of the host. */
#define NOWHERE L"/proc/self/nowhere"

static void require(PyStatus status)
{
    if (PyStatus_Exception(status))
        Py_ExitStatusException(status);
}

int main(void)
{
    PyPreConfig before;
    PyPreConfig_InitIsolatedConfig(&before);
    before.utf8_mode = 1;
    require(Py_PreInitialize(&before));

    PyImport_FrozenModules = frozen_modules;
    PyConfig config;
    PyConfig_InitIsolatedConfig(&config);
    config.use_frozen_modules = 1;
    config.site_import = 0;
    config.pathconfig_warnings = 0;
    config.module_search_paths_set = 1; /* to nothing */
    /* As the python3 command: SIGPIPE ignored, so that a reader that has gone is an error and not a death. */
    config.install_signal_handlers = 1;
    require(PyConfig_SetString(&config, &config.program_name, NOWHERE L"/enoki"));
    wchar_t **const directories[] = {
        &config.home, &config.prefix, &config.base_prefix, &config.exec_prefix, &config.base_exec_prefix,
        &config.executable, &config.base_executable, &config.stdlib_dir,
    };
    for (size_t i = 0; i < Py_ARRAY_LENGTH(directories); i++)
        require(PyConfig_SetString(&config, directories[i], NOWHERE));
    require(Py_InitializeFromConfig(&config));

    PyObject *module = PyImport_ImportModule("plugin.shim");
    if (module != NULL)
        PyObject_CallMethod(module, "run", NULL); /* leaves the process */
    PyErr_Print();
    return 1;
}
