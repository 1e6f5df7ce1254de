/* Empty on purpose: BCC includes this name and our programs need nothing from it. */
