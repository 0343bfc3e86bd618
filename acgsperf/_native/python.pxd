# cython: language_level=3
"""Declares the parts of Python's C API that the compiled modules use and that Cython's `cpython` package lacks, or
declares without raw pointers.
"""

from cpython.object cimport PyObject

cdef extern from "Python.h":
    ctypedef int (*visitproc)(PyObject *, void *) noexcept
    ctypedef int (*traverseproc)(PyObject *, visitproc, void *) noexcept
    ctypedef int (*inquiry)(PyObject *) noexcept
    ctypedef struct PyMethodDef:
        const char *ml_name
        void *ml_meth
        int ml_flags
        const char *ml_doc
    ctypedef struct PyMethodDescrObject:
        PyMethodDef *d_method
    ctypedef struct PyTypeObject:
        traverseproc tp_traverse
        inquiry tp_clear
        PyObject *tp_dict
        unsigned long tp_flags
        unsigned int tp_version_tag
    int METH_FASTCALL
    const unsigned long Py_TPFLAGS_MAPPING
    object PyDescr_NewMethod(PyTypeObject *type, PyMethodDef *method)
    int PyDict_SetItemString(PyObject *mapping, const char *key, object value) except -1
    void PyType_Modified(PyTypeObject *type)
    bint PyUnicode_Check(PyObject *value)
    bint PyUnicode_CheckExact(PyObject *value)
    Py_ssize_t PyUnicode_GET_LENGTH(PyObject *value)
    int PyUnicode_KIND(PyObject *value)
    int PyUnicode_1BYTE_KIND
    void *PyUnicode_DATA(PyObject *value)
    bint PyLong_Check(object value)
    long long PyLong_AsLongLongAndOverflow(object value, int *overflow) except? -1
    PyObject *PyObject_CallFunctionObjArgs(PyObject *callable, ...)
    void PyErr_WriteUnraisable(PyObject *origin)
    list PyList_New(Py_ssize_t size)
    void PyList_SET_ITEM(list values, Py_ssize_t i, PyObject *stolen)
    PyObject *Py_False
    PyObject *Py_None
    PyObject *Py_True
    char *PyBytes_AS_STRING(PyObject *value)
    Py_ssize_t PyBytes_GET_SIZE(PyObject *value)
    bint PyDict_CheckExact(PyObject *value)
    dict PyDict_Copy(object mapping)
    int PyDict_Next(PyObject *mapping, Py_ssize_t *position, PyObject **key, PyObject **value)
    Py_ssize_t PyDict_Size(PyObject *mapping)
    void PyErr_Clear()
    int PyErr_ExceptionMatches(object kind)
    double PyFloat_AS_DOUBLE(PyObject *value)
    bint PyFloat_CheckExact(PyObject *value)
    tuple PyList_AsTuple(object values)
    bint PyList_CheckExact(PyObject *value)
    bint PyLong_CheckExact(PyObject *value)
    Py_ssize_t PySequence_Fast_GET_SIZE(PyObject *values)
    PyObject **PySequence_Fast_ITEMS(PyObject *values)
    bint PyTuple_CheckExact(PyObject *value)
    PyObject *PyUnicode_AsUTF8String(object value)
    bint PyUnicode_IS_COMPACT_ASCII(PyObject *value)
